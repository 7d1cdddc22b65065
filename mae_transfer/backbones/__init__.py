"""Name -> encoder: one plain ViT contract over timm's VisionTransformer."""
