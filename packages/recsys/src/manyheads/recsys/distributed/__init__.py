"""Embedding tables sharded over several processes with TorchRec."""
