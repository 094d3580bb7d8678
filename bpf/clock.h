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
