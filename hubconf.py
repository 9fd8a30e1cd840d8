"""Entry points for ``torch.hub.load("/path/to/fastlip", name, ..., source="local")``."""

dependencies = ["torch", "numpy"]

from fastlip.hub import load as fastlip_model  # noqa: E402, F401
from fastlip.models import bro_net, create_model, lip_conv_net, lip_res_net, sll_net  # noqa: E402, F401
