"""MT-Bench (arXiv 2306.05685): two-turn questions of eight categories, answers graded 1 to 10 by a judge."""
