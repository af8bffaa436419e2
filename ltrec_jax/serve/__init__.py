"""Stage 5: what answers. It knows a bundle and nothing of how it was trained."""
