"""Small networks in the shapes of well-known ones, for the tests of the conversion."""

import torch
import torch.nn.functional as F
from torch import nn

import fastlip


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, as in ResNet-18: with a convolution where the shape changes."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A ResNet: stem with a 3x3 pool of stride 2, stages of basic blocks, global average pool, dense head."""

    def __init__(self, channels=1, width=8, blocks=(1, 1), classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], width
        for index, count in enumerate(blocks):
            outputs = width * 2**index
            for block in range(count):
                stages.append(BasicBlock(inputs, outputs, 2 if index and not block else 1))
                inputs = outputs
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


def vgg():
    features = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(2, 2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(True), nn.MaxPool2d(2, 2)),
    )
    head = nn.Linear(64, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), *head)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.use_res_connect = stride == 1 and inputs == outputs
        hidden = 2 * inputs
        self.conv = nn.Sequential(
            *(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(True)),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            *(nn.BatchNorm2d(hidden), nn.ReLU6(True), nn.Conv2d(hidden, outputs, 1, bias=False)),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
            *(InvertedResidual(8, 8, 1), InvertedResidual(8, 16, 2)),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, x):
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1)).reshape(x.shape[0], -1)
        return self.classifier(x)


class SqueezeExcitation(nn.Module):
    """Channels times a gate that the whole image decides on, as in MobileNetV3 and EfficientNet."""

    def __init__(self, channels, squeezed, activation, gate):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.scale_activation = activation(), gate()

    def forward(self, x):
        scale = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return scale * x


def squeezing(activation, squeeze_activation, gate):
    """A stage of a network with squeeze and excitation, its stem and its head."""
    parts = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), activation()
    body = nn.Sequential(*parts, SqueezeExcitation(16, 4, squeeze_activation, gate), nn.Conv2d(16, 8, 1))
    stem = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), activation()
    return nn.Sequential(*stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


class Transformer(nn.Module):
    """Patches, attention with a shortcut, a dense block, and the mean of the tokens."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp, self.head = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(x)).mean(1))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """ConvNeXt's block: depthwise 7x7, layer norm and dense layers along the last dimension, a learnt scale."""

    def __init__(self, channels):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x):
        shortcut = x
        x = self.dwconv(x).permute(0, 2, 3, 1)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        return shortcut + (self.gamma * x).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 2, 2), LayerNorm2d(8))
        self.stages = nn.Sequential(
            ConvNeXtBlock(8), nn.Sequential(LayerNorm2d(8), nn.Conv2d(8, 16, 2, 2)), ConvNeXtBlock(16)
        )
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.norm(self.stages(self.stem(x)).mean([-2, -1])))


def mlp():
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.SiLU(), nn.Dropout(0.1)),
        *(nn.Linear(32, 15), nn.LayerNorm(15), nn.GELU(), nn.Linear(15, 10)),
    )


class UNet(nn.Module):
    """Down, down, up by a transposed convolution, up by interpolation, with concatenated skips."""

    def __init__(self):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
        self.bottom = nn.Conv2d(16, 32, 3, padding=2, dilation=2)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.join1 = nn.Conv2d(32, 16, 3, padding=1)
        self.join2 = nn.Conv2d(24, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = torch.relu(self.bottom(F.avg_pool2d(second, 2)))
        x = F.relu(self.join1(torch.cat([self.up1(x), second], dim=1)))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(F.relu(self.join2(torch.cat((x, first), 1))))


class Sequence(nn.Module):
    """Convolutions along one dimension, the same activation at two places."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(4, 8, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm1d(8)
        self.act = nn.ReLU()
        self.second = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.pool = nn.MaxPool1d(3, 2, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.act(self.norm(self.first(x)))
        return self.head(self.pool(self.act(self.second(x))).mean(-1))


IMAGES, SERIES = (1, 8, 8), (4, 16)
NETWORKS = {
    "resnet": (ResNet, IMAGES),
    "vgg": (vgg, IMAGES),
    "mobilenet": (MobileNet, IMAGES),
    "convnext": (ConvNeXt, IMAGES),
    "mlp": (mlp, IMAGES),
    "unet": (UNet, IMAGES),
    "sequence": (Sequence, SERIES),
}


def convert(model, shape, method="aol", **options):
    """The converted model and the report, which is not printed."""
    return fastlip.convert(model, method, example=torch.rand(2, *shape), quiet=True, **options)


def disturb(model):
    """Other weights, those of the mixtures included, and running means."""
    means = [value for name, value in model.named_buffers() if name.endswith("running_mean")]
    with torch.no_grad():
        for tensor in (*model.parameters(), *means):
            tensor.add_(torch.randn_like(tensor))
    return model


class Function(nn.Module):
    """A function of a module with a dense layer and of x."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.function(self, x)
