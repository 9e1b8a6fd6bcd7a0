"""Explanations from gradients: path integrals over representations, class activation maps, attention rollouts."""
