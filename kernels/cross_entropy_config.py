"""What the reference and the kernel of the cross-entropy agree on."""

#: A target that counts for nothing, as in torch.nn.functional.cross_entropy.
IGNORED = -100
