"""The benchmarks: ``python -m benchmarks.run``. How to repeat them and what each line means: README.md here."""
