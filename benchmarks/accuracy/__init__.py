"""Makes the videos and trains the small video LLM that answers are measured with."""
