"""The built-in pre-training stage: one file a method in `methods/`, each of which reads top to bottom."""
