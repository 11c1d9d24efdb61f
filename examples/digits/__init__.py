"""Handwritten digits: two models trained when their replicas start, one FastAPI ingress that lets both vote."""
