"""Fine-tuning methods: a backbone and a head, trained with labels."""
