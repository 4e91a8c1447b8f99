"""Eight minutes on a GPU: does everything work there, the same as on a CPU, and what does it cost?"""
