"""What Tr(H_eff) costs by each library, in forward+backward passes over the same images in the same run."""
