/* The one clock: 64-bit jiffies, which test builds move. */
#ifdef TEST_CLOCK

static __always_inline u64 clock_now(void)
{
	u32 index = SWITCH_CLOCK;
	u64 *offset = switches.lookup(&index);

	return bpf_jiffies64() + (offset ? *offset : 0);
}

#else

static __always_inline u64 clock_now(void)
{
	return bpf_jiffies64();
}

#endif
