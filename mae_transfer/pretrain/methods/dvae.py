"""Training the small discrete VAE of `tokenizers/dvae.py` on the images that an encoder is to be pre-trained on.

`--backbone` gives the patch that a token stands for; no encoder is trained. The run folder is a tokenizer.
"""

from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.pretrain.config import DvaeConfig
from mae_transfer.pretrain.tokenizers.dvae import DiscreteVAE, DVAETokenizer
from mae_transfer.pretrain.views import Views


def title(config: DvaeConfig) -> str:
    return "tokenizer (this project)"


def make_views(config: DvaeConfig) -> Views:
    return Views(config)


def build_model(encoder: ViTEncoder, config: DvaeConfig, num_classes: int | None) -> DiscreteVAE:
    model = config.model
    tokenizer = DVAETokenizer(
        vocab_size=model.vocab_size,
        patch_size=encoder.patch_size,
        width=model.width,
        blocks=model.blocks,
        channels=config.data.channels,
    )
    return DiscreteVAE(tokenizer, temperature=model.temperature, kl_weight=model.kl_weight)
