"""What every room uses: errors, options, text, statistics, files, fingerprints, progress."""
