"""Transformer, MoE layer, experts, dispatch, Lightning modules and callbacks."""
