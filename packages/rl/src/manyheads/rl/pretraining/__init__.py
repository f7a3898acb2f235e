"""Self-supervised pretraining of encoders: TOV-VICReg and what it is compared with."""
