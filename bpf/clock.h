/* The one clock: 64-bit jiffies, which test builds move. */
#ifdef TEST_CLOCK

static __always_inline u64 clock_now(void)
{
	return bpf_jiffies64() + *ROW(switches, SWITCH_CLOCK);
}

#else

static __always_inline u64 clock_now(void)
{
	return bpf_jiffies64();
}

#endif

#ifdef TEST_RACES

/* Test builds wait here now and then, so that other CPUs come between. */
static __always_inline void clock_let_others(void)
{
	if (bpf_get_prandom_u32() & 7)
		return;
	for (int i = 0; i < 16; i++)
		bpf_ktime_get_ns();
}

#else

static __always_inline void clock_let_others(void)
{
}

#endif
