"""What each pretraining objective teaches, looked at in the pretrained models themselves."""
