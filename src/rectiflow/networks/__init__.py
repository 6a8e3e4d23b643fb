"""Floor 1: networks called as network(x_t, t, condition). They know nothing of schedules, losses or sampling."""
