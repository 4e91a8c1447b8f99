"""What every room uses: errors, options, text, statistics, random numbers, files, fingerprints, progress."""
