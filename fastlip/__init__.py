"""fastlip."""
