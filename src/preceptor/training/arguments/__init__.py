"""What `DistillationTrainer` is given, in the forms that users of transformers, PEFT and TRL have it in."""

from preceptor.training.arguments.given import Given, settle

__all__ = ["Given", "settle"]
