"""Who takes part in a job: workers with their epochs and marks, their leases, and what the job has refused.

Open `workers.py` first.
"""
