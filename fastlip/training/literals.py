"""The string options of a recipe, as types: an editor lists them, a type checker and the command line know them."""

from typing import Literal

from fastlip.models.literals import ModelName

DataName = Literal["digits", "mnist", "cifar10", "cifar100", "tinyimagenet", "svhn", "npz", "folder"]
Network = Literal[ModelName, "published_conv_net"]
Size = Literal["XS", "S", "M", "L", "XL"]
Optimizer = Literal["sgd", "adam", "adamw", "nadam", "adamw-schedulefree"]
Schedule = Literal["onecycle", "triangular", "cosine", "constant"]
Decayed = Literal["all", "weights"]
Precision = Literal["fp32", "bf16"]
