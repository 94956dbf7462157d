"""From prompts to tokens: requests, the engine that steps them, what they emit."""
