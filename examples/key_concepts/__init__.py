"""The concepts of Skate, one program each: deployment, handles, ingress, FastAPI ingress."""
