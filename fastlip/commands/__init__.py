"""The commands of ``fastlip``, one file each."""
