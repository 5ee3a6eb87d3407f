"""Options of the network and of what its losses weigh."""

from __future__ import annotations

from options.option import TRAIN, Option
from options.values import at_least, below_one, fraction

_NETWORK = "network"
_LOSS = "losses"

NETWORK: tuple[Option, ...] = (
    Option(
        "preset",
        "full",
        "full: the published backbones, for GPUs; lite: EfficientNet-Lite0 in full, with its ImageNet weights, between "
        "a thin DenseNet and a thin ShuffleNet, for patient CPUs; small: all three thin, for CPUs. The same shapes.",
        _NETWORK,
        (TRAIN,),
        choices=("full", "lite", "small"),
    ),
    Option(
        "pretrained",
        "auto",
        "ImageNet weights to start the RGB backbones from, where they have the published size: auto takes what the "
        "caches, an installed package or one short try of the network give, imagenet insists, none takes none.",
        _NETWORK,
        (TRAIN,),
        choices=("auto", "imagenet", "none"),
    ),
    Option(
        "distil_epochs",
        0,
        "epochs in which a tier that would start from random weights first learns, from the training images without "
        "their labels, to see what a tier with ImageNet weights sees; 0 leaves it at random weights.",
        _NETWORK,
        (TRAIN,),
        parse=at_least(0),
    ),
    Option(
        "init_from",
        "",
        "start from the weights of another run of the same preset: a weights file, or a run's name under "
        "--checkpoints_dir (its best weights, else its latest); --pretrained then counts for nothing.",
        _NETWORK,
        (TRAIN,),
    ),
    Option("dropout", 0.2, "dropout before each tier's Healthy/Anemic head.", _NETWORK, (TRAIN,), parse=fraction),
    Option(
        "binary_stream",
        "yes",
        "whether the tiers see the binary masks beside the image; no is for comparison.",
        _NETWORK,
        (TRAIN,),
        choices=("yes", "no"),
    ),
    Option(
        "fusion",
        "yes",
        "whether Global hears the fused features of the tiers beside their verdicts; no makes it Tier-III's verdict.",
        _NETWORK,
        (TRAIN,),
        choices=("yes", "no"),
    ),
    Option(
        "true_mask_share",
        0.5,
        "share of the training images whose binary stream sees the true mask instead of the predicted one.",
        _NETWORK,
        (TRAIN,),
        parse=fraction,
    ),
    Option(
        "unpaired_binary",
        "auto",
        "what the binary stream sees for an image without a true mask: otsu, predicted, or auto "
        "(Otsu's mask until the decoder has learned from images that have one, then the predicted one).",
        _NETWORK,
        (TRAIN,),
        choices=("auto", "predicted", "otsu"),
    ),
)

LOSSES: tuple[Option, ...] = (
    Option(
        "lambda_L1",
        60.0,
        "weight of the L1 term between predicted and true mask.",
        _LOSS,
        (TRAIN,),
        parse=at_least(0, float),
    ),
    Option(
        "lambda_overlap", 10.0, "weight of the overlap (soft Dice) term.", _LOSS, (TRAIN,), parse=at_least(0, float)
    ),
    Option("lambda_GAN", 1.0, "weight of the adversarial term.", _LOSS, (TRAIN,), parse=at_least(0, float)),
    Option("lambda_class", 10.0, "weight of the Healthy/Anemic term.", _LOSS, (TRAIN,), parse=at_least(0, float)),
    Option(
        "label_smoothing",
        0.0,
        "share of the Healthy/Anemic target that is spread evenly over both classes.",
        _LOSS,
        (TRAIN,),
        parse=below_one,
    ),
    Option(
        "class_weights",
        "none",
        "balanced gives both classes an equal say in the Healthy/Anemic term, whatever their numbers.",
        _LOSS,
        (TRAIN,),
        choices=("none", "balanced"),
    ),
    Option(
        "gan_mode",
        "lsgan",
        "objective of the conditional PatchGAN that judges the masks; none turns it off.",
        _LOSS,
        (TRAIN,),
        choices=("lsgan", "vanilla", "none"),
    ),
    Option(
        "pool_size",
        32,
        "generated masks kept and shown again to the discriminator; 0 keeps none.",
        _LOSS,
        (TRAIN,),
        parse=at_least(0),
    ),
)
