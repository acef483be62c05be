"""Images: self-supervised backbones, steered."""
