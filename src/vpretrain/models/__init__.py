"""What language and vision share of a pretrained network."""
