"""What Tr(H_eff) costs in each library, in forward+backward passes on the same images in the same run."""
