"""Why a product matches: the values that both vectors contain."""
