"""Loading weights: bases, depth estimators, masks, perceptual measures."""
