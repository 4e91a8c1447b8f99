"""Groups of channels that can be removed together: traced, verified and cut out."""
