"""Fine-tuning and answering."""
