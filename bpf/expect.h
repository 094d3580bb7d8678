/*
 * FTP by nat: the data connections that a control connection announces.  Each is expected for as long
 * as a connection in LISTEN lives; it keeps its control connection alive.
 */

/* The route is of a connection by nat to the FTP port, */
static __always_inline bool expect_is_control(u64 route)
{
	u64 mask = (u64)(ROUTE_METHODS - 1) << ROUTE_METHOD_SHIFT | ROUTE_FTP_CONTROL;

	return FEATURE_FTP &&
	       (route & mask) == ((u64)METHOD_NAT << ROUTE_METHOD_SHIFT | ROUTE_FTP_CONTROL);
}

/* or of one that was announced there. */
static __always_inline bool expect_is_data(u64 route)
{
	u64 mask = (u64)(ROUTE_METHODS - 1) << ROUTE_METHOD_SHIFT | ROUTE_FTP_DATA;

	return FEATURE_FTP &&
	       (route & mask) == ((u64)METHOD_NAT << ROUTE_METHOD_SHIFT | ROUTE_FTP_DATA);
}

/* The control connection of a data connection lives on. */
static __always_inline void expect_keep_control(bool ipv6, u64 reference, u64 now)
{
	struct slot *slot = ipv6 ? table_slot(TABLE_CONNECTIONS6, (u32)reference) :
				   table_slot(TABLE_CONNECTIONS4, (u32)reference);
	u64 word = READ_ONCE(slot->word);

	if (word_is_used(word) && word >> WORD_GENERATION_SHIFT == reference >> 32)
		WRITE_ONCE(((struct connection *)slot)->seen, now);
}
