"""Circular convolution of images by matrices given per frequency."""
