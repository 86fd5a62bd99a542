"""Many requests on one llama.cpp context: scheduler, prefix cache, life cycle, and the process they run in.

Nothing here imports llama_cpp: the scheduler sees token ids, sequences and positions, and asks an
`executor.Executor` to compute. ktllama.runtime has the one that runs llama.cpp; tests have one that does arithmetic.
"""
