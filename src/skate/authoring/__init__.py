"""What users declare: deployments, their graph, their code, the ingress. Nothing here runs user code."""
