"""Tang and Yuan, *Evaluating Interpretability Techniques with Human Attention in VQA*: its tables,
tests and figures, from any run with human maps."""
