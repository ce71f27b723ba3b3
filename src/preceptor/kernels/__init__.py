"""The two operations everything rests on, free of models and recipes."""
