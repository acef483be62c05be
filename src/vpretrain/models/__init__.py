"""Code for pretrained networks that language and vision share."""
