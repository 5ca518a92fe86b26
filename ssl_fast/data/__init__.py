"""Images to views: data sets, augmentation engines, and the loader."""
