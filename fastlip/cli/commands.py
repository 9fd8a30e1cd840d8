"""The commands of ``fastlip``, one file each. A file is imported when its command runs: help needs no torch."""

# Name of the command: module and attribute, and its line in the help.
COMMANDS = {
    "train": ("train:train", "Trains a network and prints its certificate."),
    "certify": ("evaluate:certify", "Certifies a network, and attacks it if asked to."),
    "audit": ("evaluate:audit", "Bounds each layer's Lipschitz constant, and their product."),
    "export": ("export:export", "Writes a network as a file that needs no fastlip."),
    "import": ("importing:import_", "Makes a run of a published checkpoint."),
    "compare": ("compare:compare", "Compares methods under one budget of training time."),
    "experiment": ("experiment:experiment", "Runs a published experiment on losses, with a figure."),
    "bench": ("bench:bench", "Times training and evaluation beside plain convolutions."),
    "doctor": ("doctor:doctor", "Says which kernels can run here, and why others cannot."),
}
