"""The commands of ``fastlip``. The file of a command is imported when it runs, so that help needs no torch."""

# For the name of a command: its module and attribute, and its line in the help.
COMMANDS = {
    "train": ("train:train", "Trains a network and prints its certificate."),
    "certify": ("evaluate:certify", "Certifies a network, and attacks it on request."),
    "audit": ("evaluate:audit", "Bounds the Lipschitz constant of each layer and of the network."),
    "export": ("export:export", "Writes a network to a file that can be used without fastlip."),
    "import": ("importing:import_", "Makes a run folder of a published checkpoint."),
    "compare": ("compare:compare", "Compares methods under one budget of training time."),
    "experiment": ("experiment:experiment", "Runs a published experiment on losses, with a figure."),
    "bench": ("bench:bench", "Times training and evaluation next to plain convolutions."),
    "doctor": ("doctor:doctor", "Shows which kernels can run here, and why others cannot."),
}
