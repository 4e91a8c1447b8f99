"""The experiments of the paper and of the documentation, one file each."""
