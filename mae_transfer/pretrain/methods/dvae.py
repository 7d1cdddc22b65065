"""Training the small discrete VAE of `tokenizers/dvae.py` on the images that an encoder is to be pre-trained on.

`--backbone` gives the patch that a token stands for; no encoder is trained. The run folder is a tokenizer.
"""

from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.pretrain.config import DvaeConfig
from mae_transfer.pretrain.methods.method import Method
from mae_transfer.pretrain.tokenizers.dvae import DiscreteVAE, DVAETokenizer


class DvaeMethod(Method[DvaeConfig, DiscreteVAE]):
    def title(self) -> str:
        return "tokenizer (this project)"

    def build_model(self, encoder: ViTEncoder, num_classes: int | None) -> DiscreteVAE:
        model = self.config.model
        tokenizer = DVAETokenizer(
            vocab_size=model.vocab_size,
            patch_size=encoder.patch_size,
            width=model.width,
            blocks=model.blocks,
            channels=self.config.data.channels,
        )
        return DiscreteVAE(tokenizer, temperature=model.temperature, kl_weight=model.kl_weight)
