"""Hugging Face's language models behind moelab's seams: their MoE layers become ours, weights and all (extra [hf])."""
